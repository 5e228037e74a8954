"""CloudFormation templates of an AWS deployment, the rules they are held to, and mosquitto's access list; data, no logic."""
