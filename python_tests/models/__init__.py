"""Model configurations: they build and keep open_clip's interface. Nothing is trained here."""
