"""From files of any format to shards of documents, with a reason for every row that is none."""
