//! A conversation about one picture.

use std::marker::PhantomData;

/// Questions and answers about one picture, which is encoded once.
#[derive(Debug)]
pub struct Chat<'m> {
    model: PhantomData<&'m ()>,
}
