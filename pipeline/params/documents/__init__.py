"""What is written from the declaration of the parameters: params.yaml's comments, docs/params.schema.json, docs/params.md."""
