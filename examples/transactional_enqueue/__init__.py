"""An order and its shipment: either both exist or neither. `python -m examples.transactional_enqueue`."""
