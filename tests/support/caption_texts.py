"""Plain and odd captions, for the tests of tokenizers."""

from __future__ import annotations

from random import Random

PLAIN = [
    "a small red star left of a striped blue circle",
    "two green triangles on a grey background",
    "The Quick Brown Fox; jumps over 13 lazy dogs, isn't it?",
    "Café déjà-vu: naïve façade, Ångström & Øresund",
    "東京タワーの写真 and 中文字幕",
    "фотография кота на подоконнике",
]
ODD = [
    "",
    " ",
    "\n\t\r ",
    "\x00",
    "null\x00byte and \x07 bell \x1b[31mred\x1b[0m \x7f",
    "🐱🏽‍🦰 emoji 👨‍👩‍👧‍👦 flags 🇩🇪🇯🇵 keycap 1️⃣",
    "&amp; &lt;b&gt;bold&lt;/b&gt; &amp;amp;lt; &nbsp;&eacute; &#x41; &#0; &#xD800; &notanentity;",
    "<a href='x'>AT&T</a> &quot;quoted&quot; &hellip;",
    "[CLS] [PAD] [SEP]",
    "[MASK][UNK]glued[PAD]words [cls] [ CLS ] [CLS",
    "e\u0301 a\u0308 n\u0303 q\u0323\u0307 combining",
    "ﬁ ligature ① full Ａ１ ｗｉｄｅ",
    "Ä°stanbul Ã©tÃ© â€œmojibakeâ€\x9d",
    "İSTANBUL ß ẞ ŉ ǅ ΑΣ",
    "zero\u200bwidth\u200djoiner\ufeff bom \u00ad soft \u2028 line \u2029 paragraph \x85 next",
    "lone surrogate \ud800 and \udfff",
    "rtl \u202eabc\u202c العربية עברית ไทย हिन्दी",
    "x" * 99 + " " + "y" * 100 + " " + "z" * 101 + " " + "w" * 5000,
    " ".join(f"word{n}" for n in range(200)),
    "!" * 300,
    "中" * 100,
    "a" + "\u0300" * 50,
    "𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𝒮 \U0010ffff \U000e0041",
    "## ##ing a##b #hashtag @user https://x.y/z?a=1&amp;b=2",
    "C:\\path\\to\\IMG_0001.JPG (1600×1200) – stock № 5 ½ ™ ®",
]


def thousand_captions() -> list[str]:
    """Return ODD and PLAIN, then mixtures of them in a fixed random order."""
    random = Random(0)
    captions = [*ODD, *PLAIN]
    while len(captions) < 1000:
        parts = random.choices([*ODD, *PLAIN], k=random.randint(1, 3))
        words = " ".join(parts).split(" ")
        random.shuffle(words)
        captions.append(" ".join(words[: random.randint(1, 40)]))
    return captions
