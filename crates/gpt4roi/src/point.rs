//! From a point to the box of what lies there.
