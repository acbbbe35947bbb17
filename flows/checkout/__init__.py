"""A checkout and its DVC: one stage reproduced, workspaces, the cache, what is handed over."""
