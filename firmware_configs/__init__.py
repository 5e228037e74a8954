"""Data, no logic: device templates, their schema, SunSpec models, site examples, gateway and broker configuration."""
