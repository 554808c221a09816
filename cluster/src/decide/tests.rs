//! Commands, told as stories.
