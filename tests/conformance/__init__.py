"""What every backend must do. Tests here name no backend: the `backend` fixture runs them on each."""
