"""Plans of sites: model-predictive control in the cloud, sent to gateways, which follow them inside their own limits."""
