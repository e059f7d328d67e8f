//! A conversation about a picture, as Python sees it.

use std::sync::{Arc, Mutex, Weak};

use gpt4roi::{
    Chat, Gpt4Roi, Image,
    bbox::ImageSize,
    chat::{Answer, AskOptions, Transcript, Undone},
    drafter::Drafter,
    generate::FinishReason,
};
use pyo3::{
    IntoPyObjectExt,
    prelude::*,
    types::{PyDict, PyString},
};
use self_cell::self_cell;

use crate::{
    answer::{PyAnswer, PyChosen},
    choices,
    failure::{Error, Failure, vanished},
    keywords::Keywords,
    region::PyRegion,
    reply::Reply,
    shapes::{Coordinates, Given},
    stream::PyStream,
    waiting::{lock, lock_patiently},
};

self_cell!(
    /// A conversation together with the model that it borrows.
    pub(crate) struct Talk {
        owner: Arc<Gpt4Roi>,

        #[covariant]
        dependent: Chat,
    }
);

/// Questions and answers about one picture.
///
/// A region is written into a question as it is: `f"What is {region}?"`. Coordinates in a question become regions,
/// `[x1, y1, x2, y2]` a box and `(x, y)` a point: fractions if at least one number has a decimal point and all lie in
/// 0..1, else pixels.
///
/// Whatever fails, is cancelled or interrupted leaves the conversation as it was. Threads that share a conversation wait
/// for each other; an answer that one of them streams is dropped by whatever else changes the conversation.
#[pyclass(name = "Chat", module = "gpt4roi", frozen)]
pub(crate) struct PyChat {
    talk: Arc<Mutex<Talk>>,
    size: ImageSize,
    streamed: Mutex<Option<Streamed>>,
}

/// The latest answer that is read while it is written.
struct Streamed {
    reply: Weak<Reply<Answer>>,
    /// The conversation without it.
    before: Transcript,
}

impl Streamed {
    /// The answer, unless it is complete or was left.
    fn open(&self) -> Option<Arc<Reply<Answer>>> {
        self.reply.upgrade().filter(|reply| reply.is_open())
    }
}

impl PyChat {
    /// Looks at the picture.
    pub(crate) fn new(model: Arc<Gpt4Roi>, drafter: &Drafter, image: &Image) -> Result<Self, Failure> {
        let talk = Talk::try_new(model, |model| Ok::<_, Failure>(Chat::new(model, image)?.drafting_by(drafter)))?;
        Ok(Self { talk: Arc::new(Mutex::new(talk)), size: image.size(), streamed: Mutex::new(None) })
    }

    /// Does something with the conversation once it is free, while Python's other threads go on. An answer that is still
    /// being streamed is dropped: whoever reads it may have left it for good.
    fn with<T: Send>(&self, py: Python<'_>, act: impl FnOnce(&mut Chat<'_>) -> T + Send) -> PyResult<T> {
        self.overtake();
        let mut talk = lock_patiently(py, &self.talk)?;
        let talk = &mut *talk;
        Ok(py.detach(|| talk.with_dependent_mut(|_, chat| act(chat))))
    }

    fn overtake(&self) {
        let open = lock(&self.streamed).take().and_then(|streamed| streamed.open());
        open.into_iter().for_each(|reply| reply.overtake());
    }

    /// The conversation so far, without an answer that is still being streamed.
    fn so_far(&self, py: Python<'_>) -> PyResult<Transcript> {
        let streamed = lock(&self.streamed);
        if let Some(streamed) = streamed.as_ref().filter(|streamed| streamed.open().is_some()) {
            return Ok(streamed.before.clone());
        }
        drop(streamed);
        self.with(py, |chat| chat.transcript())
    }

    fn add(&self, py: Python<'_>, given: Given, coordinates: Coordinates) -> PyResult<PyRegion> {
        let size = self.size;
        let region = self.with(py, move |chat| {
            let shape = given.shape(size, coordinates)?;
            let id = chat.add_shape(shape)?;
            Ok(chat.regions().iter().find(|region| region.id == id).map(|region| PyRegion::new(region, size)))
        })?;
        region.map_err(Failure::Library)?.ok_or_else(vanished)
    }

    fn begin(&self, question: &Bound<'_, PyString>, options: AskOptions) -> PyResult<Reply<Answer>> {
        self.overtake();
        let question = question.to_str()?.to_owned();
        Reply::begin(self.talk.clone(), move |chat, on_piece| {
            let answer = chat.ask_streaming(&question, &options, on_piece)?;
            Ok((answer.finish != FinishReason::Cancelled).then_some(answer))
        })
    }
}

#[pymethods]
impl PyChat {
    /// Width and height of the picture, in pixels.
    #[getter]
    fn image_size(&self) -> (u32, u32) {
        (self.size.width, self.size.height)
    }

    /// All regions, by their numbers.
    #[getter]
    fn regions(&self, py: Python<'_>) -> PyResult<Vec<PyRegion>> {
        Ok(self.so_far(py)?.regions.iter().map(PyRegion::from).collect())
    }

    /// Declares a box.
    ///
    /// Its four numbers are left, top, right and bottom edge (`box_format="xyxy"`), left, top, width and height
    /// (`"xywh"`), or centre, width and height (`"cxcywh"`); in pixels of the picture (`coords="pixel"`), fractions
    /// (`"norm"`) or thousandths (`"norm1000"`) of width and height. What sticks out of the picture is refused, or cut off
    /// with `clip=True`.
    #[pyo3(
        signature = (r#box, **keywords),
        text_signature = "($self, box, *, coords='pixel', box_format='xyxy', clip=False)"
    )]
    fn add_region(
        &self,
        py: Python<'_>,
        r#box: &Bound<'_, PyAny>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<PyRegion> {
        let (given, keywords) = (Given::read_box(r#box, "box")?, Keywords::new(keywords));
        let coordinates = Coordinates::read(&keywords)?;
        keywords.finish()?;
        self.add(py, given, coordinates)
    }

    /// Declares what lies at a point, x and y. The model reads a box around it, as its training did it.
    #[pyo3(signature = (point, *, coords="pixel"))]
    fn add_point(&self, py: Python<'_>, point: &Bound<'_, PyAny>, coords: &str) -> PyResult<PyRegion> {
        self.add(py, Given::read_point(point, "point")?, Coordinates::of_corners(coords, false)?)
    }

    /// Declares a polygon or a lasso, by at least three corners of x and y. The model reads the smallest box around it.
    #[pyo3(signature = (corners, *, coords="pixel", clip=false))]
    fn add_polygon(&self, py: Python<'_>, corners: &Bound<'_, PyAny>, coords: &str, clip: bool) -> PyResult<PyRegion> {
        self.add(py, Given::read_polygon(corners, "polygon")?, Coordinates::of_corners(coords, clip)?)
    }

    /// Declares a mask of the picture's size. The model reads the smallest box around what it marks.
    ///
    /// `mask` is an array or a PIL image of H×W, booleans or bytes, in which marked pixels aren't 0; the path or the bytes
    /// of a PNG file; or COCO's RLE, a dict of "size" and "counts".
    fn add_mask(&self, py: Python<'_>, mask: &Bound<'_, PyAny>) -> PyResult<PyRegion> {
        self.add(py, Given::read_mask(mask, "mask")?, Coordinates::default())
    }

    /// Answers a question.
    ///
    /// At temperature 0 the most likely token is always taken, and `top_k`, `top_p` and `seed` play no part. `stop` are
    /// texts that end an answer, and are no part of it. With `zoom="auto"` small regions are looked at in a crop of their
    /// own. Up to `draft` tokens that
    /// are likely to come are read along with each; answers stay the same.
    ///
    /// Ctrl-C ends the answer, and the conversation is as if the question had never been asked.
    #[pyo3(
        signature = (question, **keywords),
        text_signature = "($self, question, *, max_new_tokens=512, temperature=0.0, top_k=50, top_p=1.0, seed=0, \
            stop=(), zoom='off', draft=None)"
    )]
    fn ask(
        &self,
        py: Python<'_>,
        question: &Bound<'_, PyString>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<PyAnswer> {
        let options = options(keywords)?;
        self.begin(question, options)?.finish(py).map(PyAnswer)
    }

    /// Answers a question as `ask` does, piece by piece: an iterator of texts, with the whole as its `answer` behind
    /// the last.
    #[pyo3(
        signature = (question, **keywords),
        text_signature = "($self, question, *, max_new_tokens=512, temperature=0.0, top_k=50, top_p=1.0, seed=0, \
            stop=(), zoom='off', draft=None)"
    )]
    fn stream(
        &self,
        py: Python<'_>,
        question: &Bound<'_, PyString>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<PyStream> {
        let options = options(keywords)?;
        let before = self.with(py, |chat| chat.transcript())?;
        let reply = Arc::new(self.begin(question, options)?);
        *lock(&self.streamed) = Some(Streamed { reply: Arc::downgrade(&reply), before });
        Ok(PyStream(reply))
    }

    /// Asks which of some answers is right. The most probable one becomes the answer in the conversation.
    ///
    /// `choices` are texts, or labels with what the model says for each, as pairs or as a dict. With `scoring="likely"`
    /// a choice is given up once it is far less probable than another, which is what many choices need.
    #[pyo3(
        signature = (question, choices, **keywords),
        text_signature = "($self, question, choices, *, scoring='all', zoom='off')"
    )]
    fn choose(
        &self,
        py: Python<'_>,
        question: &Bound<'_, PyString>,
        choices: &Bound<'_, PyAny>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<PyChosen> {
        let (choices, keywords) = (choices::read(choices)?, Keywords::new(keywords));
        let options = keywords.choice_options()?;
        keywords.finish()?;
        self.overtake();
        let question = question.to_str()?.to_owned();
        let chosen =
            Reply::begin(self.talk.clone(), move |chat, _| chat.choose(&question, &choices, &options).map(Some))?;
        chosen.finish(py).map(PyChosen)
    }

    /// Goes on as if the last answer had been another one; without an answer nothing happens.
    fn replace_answer(&self, py: Python<'_>, answer: &str) -> PyResult<()> {
        self.with(py, |chat| chat.replace_answer(answer))
    }

    /// Takes the latest thing back and returns it: a Region added since the last round, or else that round with its
    /// "question" and "answer". None if there is nothing.
    fn undo<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(match self.with(py, |chat| chat.undo())? {
            None => None,
            Some(Undone::Region(region)) => Some(PyRegion::new(&region, self.size).into_bound_py_any(py)?),
            Some(Undone::Round(round)) => {
                let undone = PyDict::new(py);
                undone.set_item("question", round.question)?;
                undone.set_item("answer", round.answer)?;
                Some(undone.into_any())
            }
        })
    }

    /// Forgets regions and rounds, and begins anew with the same picture, which is not looked at again.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |chat| chat.clear())
    }

    /// The conversation so far, ready for `json.dump`: "image_size", "regions" and "rounds".
    fn transcript<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let transcript = serde_json::to_string(&self.so_far(py)?);
        let transcript = transcript.map_err(|error| Error::new_err(error.to_string()))?;
        py.import("json")?.call_method1("loads", (transcript,))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let Transcript { regions, rounds, image_size: [width, height] } = self.so_far(py)?;
        Ok(format!("Chat(image_size=({width}, {height}), {} regions, {} rounds)", regions.len(), rounds.len()))
    }
}

fn options(keywords: Option<Bound<'_, PyDict>>) -> PyResult<AskOptions> {
    let keywords = Keywords::new(keywords);
    let options = keywords.ask_options()?;
    keywords.finish()?;
    Ok(options)
}
