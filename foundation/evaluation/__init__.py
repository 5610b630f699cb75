"""From runs to figures that can be made again."""
