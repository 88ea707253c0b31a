"""`cid finetune`: the classifying layer of a teacher that exists, trained on other data."""
