"""What the method of ``the_bundle`` brings beside MONAI and ``common``: network, loss and the like go here."""
