"""The sweep file -> trials."""
