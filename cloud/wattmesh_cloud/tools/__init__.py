"""The five tool services as plain typed functions with three faces: in process, MCP, AWS Lambda."""
