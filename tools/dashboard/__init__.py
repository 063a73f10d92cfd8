"""The source of the Grafana dashboard and of the Prometheus rules, which the package ships as data."""
