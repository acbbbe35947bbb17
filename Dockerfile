# The image for work pools of containers: Python, git, and the packages; the code comes from the mounted checkout.
#   docker build -t regraft .          see README.md, "Work in containers"
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE /regraft/
COPY flows /regraft/flows
COPY tasks /regraft/tasks
RUN pip install --no-cache-dir -c /regraft/constraints.txt '/regraft[language,optuna,servers]'
RUN git config --system --add safe.directory '*'
ENV HOME=/tmp USER=regraft
