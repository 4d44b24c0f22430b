# One image a process, each with its binary alone: `docker build --target auth|product|order|gateway .` They
# share the build, which is done once. There is no shell in them; their health check is the binary itself
# (--probe).
#
# Where the registries cannot be reached, name base images of your own: RUST_IMAGE needs cargo and cc,
# BASE_IMAGE glibc (of the same age or newer), libgcc and nothing else; the authorities that the world trusts come from
# RUST_IMAGE, for PostgreSQL and Redis whose certificates are public.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot

# The manifests, each package with empty sources: as long as no dependency changes, this stage comes out the
# same.
FROM ${RUST_IMAGE} AS manifests
WORKDIR /build
COPY . .
RUN set -eu; \
    find . -type f ! -name Cargo.toml ! -name Cargo.lock ! -name build.rs -delete; \
    find . -name build.rs | while read -r script; do echo 'fn main() {}' > "$script"; done; \
    find . -mindepth 2 -name Cargo.toml | while read -r manifest; do \
        package=${manifest%/Cargo.toml}; \
        mkdir -p "$package/src" "$package/tests/it"; \
        : > "$package/src/lib.rs"; \
        echo 'fn main() {}' | tee "$package/src/main.rs" > "$package/tests/it/main.rs"; \
    done; \
    find . -type d -empty -delete

# Everything that is not ours, compiled: a layer that is kept while only our own code changes.
FROM ${RUST_IMAGE} AS dependencies
# `dev` builds in a third of the time, for trying the images out.
ARG PROFILE=release
WORKDIR /build
COPY --from=manifests /build .
# The empty packages go again: cargo compares times, and our sources may be older than they are.
RUN set -eu; \
    cargo build --locked --profile "$PROFILE" \
        -p shoppee-auth -p shoppee-product -p shoppee-order -p shoppee-gateway; \
    cargo clean --profile "$PROFILE" \
        -p shoppee-proto -p shoppee-kit -p shoppee-auth -p shoppee-product -p shoppee-order -p shoppee-gateway

FROM dependencies AS build
# Docker's older builder hands no ARG on to the next stage.
ARG PROFILE=release
COPY . .
RUN set -eu; \
    cargo build --locked --profile "$PROFILE" \
        -p shoppee-auth -p shoppee-product -p shoppee-order -p shoppee-gateway; \
    folder=$PROFILE; [ "$folder" != dev ] || folder=debug; \
    mkdir /out; \
    for name in auth product order gateway; do cp "target/$folder/shoppee-$name" /out/; done

FROM ${BASE_IMAGE} AS base
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Shoppee" \
      org.opencontainers.image.description="The backend of an online shop" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# A number, so that Kubernetes can tell it is not root; the processes write no file, whoever they are.
USER 10001:10001
STOPSIGNAL SIGTERM

FROM base AS auth
COPY --from=build /out/shoppee-auth /usr/local/bin/
EXPOSE 50051 9101
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s CMD ["/usr/local/bin/shoppee-auth", "--probe"]
ENTRYPOINT ["/usr/local/bin/shoppee-auth"]

FROM base AS product
COPY --from=build /out/shoppee-product /usr/local/bin/
EXPOSE 50052 9102
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s CMD ["/usr/local/bin/shoppee-product", "--probe"]
ENTRYPOINT ["/usr/local/bin/shoppee-product"]

FROM base AS order
COPY --from=build /out/shoppee-order /usr/local/bin/
EXPOSE 50053 9103
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s CMD ["/usr/local/bin/shoppee-order", "--probe"]
ENTRYPOINT ["/usr/local/bin/shoppee-order"]

FROM base AS gateway
COPY --from=build /out/shoppee-gateway /usr/local/bin/
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s CMD ["/usr/local/bin/shoppee-gateway", "--probe"]
ENTRYPOINT ["/usr/local/bin/shoppee-gateway"]
