"""Alarms told outside: signed webhooks and e-mail, kept until they are delivered."""
