# The relay alone: a virtual environment built in one image, copied into another without compilers
# or package caches.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY relay relay
COPY web web
RUN python -m venv /opt/relay && /opt/relay/bin/pip install --no-cache-dir '.[aws]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home relay
COPY --from=build /opt/relay /opt/relay
ENV PATH=/opt/relay/bin:$PATH PYTHONUNBUFFERED=1
USER relay
EXPOSE 8000
# Readiness (is Redis there?) is /readyz and for load balancers; a relay without its Redis must not
# be killed, its sockets would go with it.
HEALTHCHECK --interval=10s --timeout=4s --start-period=5s CMD ["python", "-c", \
    "import os, urllib.request as http; http.urlopen(f\"http://127.0.0.1:{os.environ.get('RELAY_PORT', '8000')}/healthz\", timeout=3)"]
CMD ["relay", "serve", "--host", "0.0.0.0"]
