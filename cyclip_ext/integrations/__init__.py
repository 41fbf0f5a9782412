"""The losses in the trainers of other packages.

| module | for |
| --- | --- |
| `open_clip` | open_clip's trainer, without changing it: `install`, or `python -m` with its flags |
| `transformers` | the Trainer, for CLIPModel, SiglipModel and other dual encoders |
| `sentence_transformers` | a ranking loss for SentenceTransformerTrainer |

Each module imports the package that it is named after; nothing else imports these modules. They
are adapters: the losses are in cyclip_ext.losses. docs/integrations.md has the usage.
"""
