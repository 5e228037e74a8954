"""OpenADR 3: a virtual end node whose events become our demand-response events."""
