"""One get_config(preset) a stage; `--config=configs/STAGE.py:PRESET` loads it by its path."""
