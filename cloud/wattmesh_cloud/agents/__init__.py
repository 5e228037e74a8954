"""Cloud agents: policies now, language models later, typed proposals always."""
