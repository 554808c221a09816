//! What is written, in which order, told as stories.

use super::*;
