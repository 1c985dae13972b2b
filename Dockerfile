# The server with a demo model inside: `docker run -p 8500:8500 ddl-server` answers at once. docs/operations.md says how to run it.
# Two targets: cpu, the last and so the default, and cuda (`docker build --target cuda`), which also computes on an NVIDIA GPU.
#
# The stages go from what changes least to what changes most, so that a change of the source downloads nothing again.
ARG BASE=debian:bookworm-slim

# What the build needs: Debian's packages, and LibTorch from its wheel.
FROM ${BASE} AS dependencies
WORKDIR /source
COPY scripts/install_dependencies.sh scripts/apt-build.txt scripts/requirements-libtorch.txt scripts/
RUN scripts/install_dependencies.sh build

# With CUDA: nvcc and the whole of LibTorch, from wheels as well.
FROM dependencies AS cuda-dependencies
COPY scripts/requirements-libtorch-cuda.txt scripts/requirements-nvcc.txt scripts/
RUN scripts/install_dependencies.sh cuda nvcc
ENV CUDAToolkit_ROOT=/source/.venv/lib/python3.11/site-packages/nvidia/cu13
ENV CUDACXX=${CUDAToolkit_ROOT}/bin/nvcc

# What is compiled, and how.
FROM scratch AS source
COPY CMakeLists.txt CMakePresets.json LICENSE THIRD_PARTY_NOTICES.md /
COPY cmake /cmake
COPY scripts/build.sh /scripts/
COPY deploy/docker/build.sh /deploy/docker/
COPY proto /proto
COPY base /base
COPY model /model
COPY server /server

# The program, under /opt/ddl.
FROM dependencies AS build
COPY --from=source / ./
# Compilers at a time; empty: as many as processors and memory allow.
ARG JOBS=
ARG REVISION=unknown
RUN --mount=type=cache,target=/ccache deploy/docker/build.sh release ${REVISION}

# The same with CUDA.
FROM cuda-dependencies AS cuda-build
COPY --from=source / ./
ARG JOBS=
ARG REVISION=unknown
RUN --mount=type=cache,target=/ccache deploy/docker/build.sh cuda ${REVISION}

# What runs, but for the program: no compiler, no Python, nothing that another stage needed.
FROM ${BASE} AS runtime
COPY deploy/docker/apt-runtime.txt /tmp/
RUN apt-get update -q \
 && sed 's/#.*//' /tmp/apt-runtime.txt | xargs env DEBIAN_FRONTEND=noninteractive \
      apt-get install --yes --no-install-recommends -q \
 && rm -rf /tmp/apt-runtime.txt /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
 # Where own models are mounted.
 && mkdir /models
COPY models/ddl-demo /opt/ddl/share/ddl/models/ddl-demo
COPY deploy/docker/healthcheck.sh /opt/ddl/bin/healthcheck
# Any flag of `ddl_server --help` can be set as DDL_<FLAG>; flags after the image's name win.
ENV DDL_MODEL=/opt/ddl/share/ddl/models/ddl-demo
# A number, so that Kubernetes can tell that it is not root. The server needs no home and writes no file.
USER 10001:10001
WORKDIR /
EXPOSE 8500 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 CMD ["/opt/ddl/bin/healthcheck"]
ENTRYPOINT ["/opt/ddl/bin/ddl_server"]
LABEL org.opencontainers.image.title="ddl-server" \
      org.opencontainers.image.description="Serves Deep Delta Learning language models over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS cuda
# What NVIDIA's container runtime is to bring from the machine: its driver, whose version the image cannot know.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-build /opt/ddl/lib /opt/ddl/lib
COPY --from=cuda-build /opt/ddl/share/doc /opt/ddl/share/doc
COPY --from=cuda-build /opt/ddl/bin/ddl_server /opt/ddl/bin/ddl_server
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM runtime AS cpu
# LibTorch is 9 tenths of the program and stays the same while the program changes: a layer of its own.
COPY --from=build /opt/ddl/lib /opt/ddl/lib
COPY --from=build /opt/ddl/share/doc /opt/ddl/share/doc
COPY --from=build /opt/ddl/bin/ddl_server /opt/ddl/bin/ddl_server
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
