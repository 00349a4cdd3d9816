"""The file of the paper's sets says what the paper says (tables 4 to 6, A.2), and scores as it stands."""

from pathlib import Path

from support.evaluation_samples import COLOURS, encoder_of, npy, swatch, write_tar

from flipscale.config import load_evaluation
from flipscale.evaluation.evaluate import check_sets, evaluate_outcomes

FILE = Path(__file__).parents[2] / "jobs" / "evaluation" / "paper.yaml"
MEAN_PER_CLASS = {"aircraft", "pets", "caltech101", "flowers102"}
OTHERS = {"kinetics700": "top1_top5_mean", "hateful_memes": "roc_auc", "voc2007": "map_11_point"}
ROBUSTNESS = {"imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_sketch", "objectnet"}


def test_metrics_and_prompts_are_those_of_the_paper():
    sets = load_evaluation(FILE).zero_shot
    assert len(sets) == 25 + 1 + len(ROBUSTNESS)
    assert {name for name, config in sets.items() if config.metric == "mean_per_class"} == MEAN_PER_CLASS
    for name, config in sets.items():
        if name not in MEAN_PER_CLASS:
            assert config.metric == OTHERS.get(name, "top1")
        if name not in ROBUSTNESS | {"imagenet"}:
            assert (config.classnames, config.templates) == ("own", "own")
    assert (sets["imagenet_r"].templates, sets["objectnet"].templates) == ("openai80", "name")
    for name in ("imagenet", "imagenet_v2", "imagenet_a", "imagenet_sketch"):
        assert sets[name].templates == "openai7"


def test_tiny_copy_of_every_set_is_scored(tmp_path, colour_model, words):
    """In CLIP_benchmark's layout, three images per set; ImageNet's own names come from open_clip."""
    sets = load_evaluation(FILE)
    sets = sets.model_copy(update={"root": str(tmp_path)})
    for name, config in sets.zero_shot.items():
        colours = list(COLOURS)[: 2 if config.metric == "roc_auc" else 3]
        members = []
        for n, colour in enumerate(colours):
            label = ("npy", npy([float(c == n) for c in range(3)]))
            label = label if config.metric == "map_11_point" else ("cls", str(n).encode())
            members += [(f"{n}.jpg", swatch(colour)), (f"{n}.{label[0]}", label[1])]
        write_directory(tmp_path / config.data, members)
        (tmp_path / config.data / "classnames.txt").write_text("\n".join(colours) + "\n")
        (tmp_path / config.data / "zeroshot_classification_templates.txt").write_text(f"a {{c}} {name}\n")
    for data in sets.retrieval.values():
        members = [(f"{c}.jpg", swatch(c)) for c in COLOURS] + [(f"{c}.txt", c.encode()) for c in COLOURS]
        write_directory(tmp_path / data, sorted(members))
    check_sets(sets)
    document = evaluate_outcomes(encoder_of(colour_model, words), sets, batch_size=4).document
    assert document["skipped"] == 0
    for name, scores in document["zero_shot"].items():
        assert scores["metric"] == sets.zero_shot[name].metric
        assert scores["value"] == 1.0 or sets.zero_shot[name].classnames == "imagenet"
    assert all(scores["image_to_text"]["R@1"] == 1.0 for scores in document["retrieval"].values())


def write_directory(directory: Path, members: list[tuple[str, bytes]]) -> None:
    (directory / "test").mkdir(parents=True)
    write_tar(directory / "test" / "0.tar", members)
    (directory / "test" / "nshards.txt").write_text("1\n")
