"""Runs as RayJobs of KubeRay: rendered from the overlays of kube/, applied, followed."""
