# flipscale on Debian's Python, with packages of Debian and PyPI only; torch brings the libraries of CUDA.
#   docker build --tag flipscale .
#   docker run --gpus all --shm-size 16g --volume "$PWD":/work flipscale flipscale train my_job.yaml
# slurm/flipscale.def is the same for Apptainer.
FROM python:3.11-slim

# torch.compile and `flipscale rehearse` compile C++.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# The libraries first: they change less often than the code.
WORKDIR /opt/flipscale
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt torch numpy

COPY pyproject.toml README.md LICENSE ./
COPY flipscale flipscale
COPY tools/matching_torchvision.py tools/
# The packages for buckets want an older python-dateutil than the tested set.
RUN pip install --no-cache-dir --constraint constraints.txt '.[report]' \
    && pip install --no-cache-dir '.[s3,gs]' \
    && python tools/matching_torchvision.py \
    && flipscale --version

WORKDIR /work
CMD ["flipscale", "--help"]
