//! The smallest box around an annotation's `segmentation`, which is COCO's own definition of its `bbox`. Corners are not
//! kept: files have millions, and nearly all have boxes.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// What a `segmentation` tells of the box around it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Outline {
    /// Nothing: it is not there, or empty.
    #[default]
    Missing,
    /// The edges of the box around its polygons, xyxy in pixels.
    Polygons([f64; 4]),
    /// It is none of polygons, but for example a run-length encoding.
    Other,
}

impl<'de> Deserialize<'de> for Outline {
    /// Never fails: of an annotation that has a box, nobody wants to know the outline.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Node::deserialize(deserializer)? {
            Node::Empty => Self::Missing,
            Node::Polygons(edges) => Self::Polygons(edges),
            Node::Number(_) | Node::Polygon(_) | Node::Other => Self::Other,
        })
    }
}

/// A value in a segmentation: a list of polygons, each of which is a list of numbers, x and y in turns.
enum Node {
    Number(f64),
    Polygon([f64; 4]),
    Polygons([f64; 4]),
    /// A list without entries, or nothing.
    Empty,
    Other,
}

impl Node {
    /// A list with one more entry; `index` says which.
    fn with(self, index: usize, entry: Self) -> Self {
        const NOWHERE: [f64; 4] = [f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY];
        match (self, entry) {
            (Self::Empty, Self::Number(x)) if index == 0 => Self::Polygon(around(NOWHERE, index, x)),
            (Self::Polygon(edges), Self::Number(number)) => Self::Polygon(around(edges, index, number)),
            (Self::Empty, Self::Polygon(edges)) => Self::Polygons(edges),
            (Self::Polygons([x1, y1, x2, y2]), Self::Polygon([left, top, right, bottom])) => {
                Self::Polygons([x1.min(left), y1.min(top), x2.max(right), y2.max(bottom)])
            }
            (list @ (Self::Empty | Self::Polygons(_)), Self::Empty) => list,
            _ => Self::Other,
        }
    }
}

/// The edges with one more number inside: an x at even indices, a y at odd ones.
fn around(mut edges: [f64; 4], index: usize, number: f64) -> [f64; 4] {
    let axis = index % 2;
    edges[axis] = edges[axis].min(number);
    edges[axis + 2] = edges[axis + 2].max(number);
    edges
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a segmentation")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let (mut node, mut index) = (Node::Empty, 0);
        while let Some(entry) = list.next_element()? {
            node = node.with(index, entry);
            index += 1;
        }
        // The last x has no y.
        let is_odd = matches!(node, Node::Polygon(_)) && index % 2 == 1;
        Ok(if is_odd { Node::Other } else { node })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Node::Other)
    }

    fn visit_f64<E>(self, number: f64) -> Result<Node, E> {
        Ok(Node::Number(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(Node::Number(number as f64))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        Ok(Node::Number(number as f64))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Empty)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_box_is_from_the_least_to_the_greatest_corner() {
        for (segmentation, expected) in [
            ("[[10.5, 20, 110.5, 20, 110.5, 70]]", Outline::Polygons([10.5, 20.0, 110.5, 70.0])),
            ("[[5, 6, 7, 8, 9, 1], [], [-2, 30, 4, 31, 3, 3]]", Outline::Polygons([-2.0, 1.0, 9.0, 31.0])),
            ("null", Outline::Missing),
            ("[]", Outline::Missing),
            ("[[]]", Outline::Missing),
            (r#"{"counts": [1, 2], "size": [3, 1]}"#, Outline::Other),
            (r#"{"counts": "PP`1", "size": [3, 1]}"#, Outline::Other),
            ("[1, 2, 3, 4, 5, 6]", Outline::Other),
            ("[[1, 2, 3]]", Outline::Other),
            ("[[1, 2, 3, 4], 5]", Outline::Other),
            ("[[1, null]]", Outline::Other),
            ("[[[1, 2], [3, 4]]]", Outline::Other),
            (r#"[{"x": 1, "y": 2}]"#, Outline::Other),
            ("true", Outline::Other),
            ("\"\"", Outline::Other),
            ("7", Outline::Other),
        ] {
            assert_eq!(serde_json::from_str::<Outline>(segmentation).unwrap(), expected, "{segmentation}");
        }
    }
}
