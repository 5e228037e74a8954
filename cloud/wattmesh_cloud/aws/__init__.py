"""What an AWS deployment is described by, without AWS: policies with their evaluators, and costs."""
