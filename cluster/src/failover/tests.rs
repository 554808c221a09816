//! Tests of the decisions one by one; the simulator (`sim`) tests them together.
