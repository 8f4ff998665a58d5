"""The configs of our families with their named models, one file a family and none of them with torch."""
