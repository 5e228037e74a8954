"""Who may see and do what: users, sessions, machine tokens, roles and tenants, and the door they come through."""
