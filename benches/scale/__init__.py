"""What a step of distillation costs by ranks and classes: a model, and how far measurements here bear it out.

    python -m benches.scale                  # the model's numbers, beside what is counted in two processes here
    python -m benches.scale --picture docs/pictures

`model.py` has the formulas, `machines.py` what they assume of GPUs and networks, `counted.py` the check, and
`picture.py` draws the pictures of `docs/scale.md`. Seconds and bytes of many GPUs are modelled: none has run this.
"""
