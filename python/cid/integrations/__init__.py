"""What training frameworks need beside a `cid.Distiller`, each imported by its own name only.

`cid.integrations.lightning` has a callback for Lightning's `Trainer`, `cid.integrations.transformers` a `Trainer` for
Hugging Face's. PyTorch's own loops and timm's models need neither.
"""
