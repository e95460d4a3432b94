"""What the default loses or gains where one of its constants is another."""
