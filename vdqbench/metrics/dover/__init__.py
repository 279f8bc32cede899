"""DOVER (arXiv 2211.04894): a video quality network with a technical and an aesthetic branch, and how it samples videos."""
