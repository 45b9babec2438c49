"""What the model does when neurons are held, moved or exchanged, beside the same done to controls."""
