# A server that answers with the embedded model, or with one from the volume:
#
#     podman build -t gpt4roi .
#     podman run --rm -p 127.0.0.1:8080:8080 -e GPT4ROI_API_KEY=secret -v models:/models gpt4roi
#     podman run --rm -v models:/models gpt4roi pull ORG/NAME
#
# Docker takes the same words. docs/serving.md says more.
FROM docker.io/library/rust:1.95-slim-trixie AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked -p gpt4roi-cli

FROM docker.io/library/debian:trixie-slim
# The certificates of hubs, and of https pictures if these are fetched.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /source/target/release/gpt4roi /usr/local/bin/gpt4roi
RUN useradd --system --no-create-home gpt4roi && install -d -o gpt4roi /models
USER gpt4roi
ENV HF_HOME=/models GPT4ROI_HOST=0.0.0.0
VOLUME /models
EXPOSE 8080
ENTRYPOINT ["gpt4roi"]
CMD ["serve"]
