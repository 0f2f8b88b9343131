"""One module a campaign; `campaign.NAMES` lists them."""
