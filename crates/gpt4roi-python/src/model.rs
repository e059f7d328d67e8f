//! The model, and where it comes from.

use std::{
    env,
    ffi::CString,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use gpt4roi::{
    Chat, DeviceChoice, Gpt4Roi, Precision, RegionId,
    bbox::ImageSize,
    device,
    draft_model::DraftModel,
    drafter::Drafter,
    mention::{self, Part},
    model_choice::ModelChoice,
    shape::Shape,
};
use gpt4roi_hub::{Cache, ModelRef};
use pyo3::{
    exceptions::{PyRuntimeWarning, PyValueError},
    prelude::*,
    types::PyDict,
};

use crate::{
    answer::{PyAnswer, PyChosen, quoted},
    chat::PyChat,
    choices,
    failure::Failure,
    keywords::Keywords,
    picture::Picture,
    shapes::Regions,
    waiting::{Asker, compute},
};

/// A model ready to use. Any number of threads may use one.
#[pyclass(name = "Model", module = "gpt4roi", frozen)]
pub(crate) struct PyModel {
    model: Arc<Gpt4Roi>,
    /// Learns from all that the model is asked and answers.
    drafter: Drafter,
    name: String,
    precision: Precision,
}

/// Opens a model.
///
/// `model` is a directory in the published layout, a directory with a pair of GGUF files, the language model's file of
/// such a pair, or ORG/NAME[@REV] that `gpt4roi pull` has brought into the cache. Nothing is downloaded. Without it the
/// small model inside this package answers, which knows drawn objects and nothing else.
///
/// `adapter` is the directory of an adapter of this model, as `gpt4roi export` writes it after training beside a model,
/// or PEFT (LoRA).
///
/// `draft_model` is a small LLaMA with the same tokens, which drafts answers for this model to check: a directory, a GGUF
/// file or ORG/NAME[@REV]. Answers come sooner and stay the same.
///
/// `device` is auto, cpu, cuda, cuda:N or metal; a GPU needs a package that was built for it. `dtype` says in how many
/// bits weights are kept: f32, f16 or bf16.
#[pyfunction]
#[pyo3(signature = (model=None, *, adapter=None, draft_model=None, device="auto", dtype="f32"))]
pub(crate) fn load(
    py: Python<'_>,
    model: Option<PathBuf>,
    adapter: Option<PathBuf>,
    draft_model: Option<PathBuf>,
    device: &str,
    dtype: &str,
) -> PyResult<PyModel> {
    let wrong = |name: &str, error: &dyn std::fmt::Display| PyValueError::new_err(format!("{name}: {error}"));
    let choice: DeviceChoice = device.parse().map_err(|error| wrong("device", &error))?;
    let precision: Precision = dtype.parse().map_err(|error| wrong("dtype", &error))?;
    let named = ModelChoice { model, adapter };
    let name = named.to_string();
    let (model, drafter, warnings) = compute(py, move |_| {
        let files = named.files(|model| place_of("model", model))?;
        let mut warnings = Vec::new();
        warnings.extend(files.mismatch()?.map(|mismatch| mismatch.to_string()));
        let device = choice.open(|error| warnings.push(error.to_string()))?;
        let model = Gpt4Roi::load(&files, &device, precision)?;
        let drafter = match draft_model {
            Some(name) => {
                Drafter::with_model(DraftModel::open(&place_of("draft_model", &name)?, &model.tokenizer, &device)?)
            }
            None => Drafter::new(),
        };
        Ok((model, drafter, warnings))
    })?;
    for warning in warnings {
        PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &CString::new(warning)?, 1)?;
    }
    Ok(PyModel { model: Arc::new(model), drafter, name, precision })
}

/// Where the files lie that a name stands for; `argument` is what it was given for.
fn place_of(argument: &str, model: &Path) -> Result<PathBuf, Failure> {
    let is_gguf = model.extension().is_some_and(|extension| extension == "gguf");
    if model.is_dir() || is_gguf {
        return Ok(model.to_owned());
    }
    let place = model.display();
    let name = model.to_str().filter(|name| name.contains('/')).and_then(|name| name.parse::<ModelRef>().ok());
    let name =
        name.ok_or_else(|| Failure::NoModel(format!("{argument}: {place} is neither a directory nor a GGUF file")))?;
    let cache = Cache::from_env(|name| env::var(name).ok())?;
    cache.find(&name).map_err(|_| {
        let root = cache.root().display();
        let missing = format!("{argument}: {name} is neither a directory nor a model in the cache {root}");
        Failure::NoModel(format!("{missing}; `gpt4roi pull {name}` downloads it"))
    })
}

#[pymethods]
impl PyModel {
    /// How the model was called when it was opened, and its adapter: "embedded" is the one inside this package,
    /// "models/7b with adapters/own" one with an adapter.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// Where it computes: cpu, cuda or metal.
    #[getter]
    fn device(&self) -> &'static str {
        device::name(&self.model.device)
    }

    /// In how many bits its weights are kept: f32, f16 or bf16.
    #[getter]
    fn dtype(&self) -> String {
        self.precision.to_string()
    }

    /// Begins a conversation about a picture, which is looked at once.
    ///
    /// `image` is the path or the bytes of a PNG, JPEG or WebP file, a PIL image, or an array of H×W×3 bytes in RGB. A
    /// file is turned upright as its EXIF data say; a PIL image or an array is taken as it is.
    fn chat(&self, py: Python<'_>, image: &Bound<'_, PyAny>) -> PyResult<PyChat> {
        let (picture, model, drafter) = (Picture::read(image)?, self.model.clone(), self.drafter.clone());
        compute(py, move |_| PyChat::new(model, &drafter, &picture.open()?))
    }

    /// Asks the same about each of many regions of a picture, in one pass; the answers come in the order of `boxes`,
    /// `points`, `polygons`, `masks`.
    ///
    /// In `question` the region is `<region1>`. How many regions are read together depends on `batch_bytes`, the memory
    /// that they may take; it changes no answer.
    #[pyo3(
        signature = (image, boxes=None, **keywords),
        text_signature = "($self, image, boxes=None, *, points=None, polygons=None, masks=None, \
            question='What is <region1>?', coords='pixel', box_format='xyxy', clip=False, max_new_tokens=512, \
            temperature=0.0, top_k=50, top_p=1.0, seed=0, stop=(), zoom='off', draft=None, \
            batch_bytes=1073741824)"
    )]
    fn describe(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        boxes: Option<&Bound<'_, PyAny>>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<Vec<PyAnswer>> {
        let keywords = Keywords::new(keywords);
        let regions = AboutEach::read(self, image, boxes, &keywords)?;
        let options = keywords.batch_bytes(keywords.ask_options()?)?;
        keywords.finish()?;
        let answers = compute(py, move |asker| {
            regions.ask(asker, |chat, shapes, question, on_answer| {
                chat.describe_regions_streaming(shapes, question, &options, on_answer)
            })
        })?;
        Ok(answers.into_iter().map(PyAnswer).collect())
    }

    /// Asks about each of many regions of a picture which of some answers is right, in one pass; they come in the order
    /// of `boxes`, `points`, `polygons`, `masks`.
    ///
    /// `choices` are texts, or labels with what the model says for each, as pairs or as a dict. With `scoring="likely"`
    /// a choice is given up once it is far less probable than another, which is what many choices need.
    #[pyo3(
        signature = (image, boxes, choices, **keywords),
        text_signature = "($self, image, boxes, choices, *, points=None, polygons=None, masks=None, \
            question='What is <region1>?', coords='pixel', box_format='xyxy', clip=False, scoring='all', zoom='off', \
            batch_bytes=1073741824)"
    )]
    fn choose(
        &self,
        py: Python<'_>,
        image: &Bound<'_, PyAny>,
        boxes: Option<&Bound<'_, PyAny>>,
        choices: &Bound<'_, PyAny>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<Vec<PyChosen>> {
        let keywords = Keywords::new(keywords);
        let regions = AboutEach::read(self, image, boxes, &keywords)?;
        let (choices, options) = (choices::read(choices)?, keywords.batch_bytes(keywords.choice_options()?)?);
        keywords.finish()?;
        let chosen = compute(py, move |asker| {
            regions.ask(asker, |chat, shapes, question, on_chosen| {
                chat.choose_for_regions_streaming(shapes, question, &choices, &options, on_chosen)
            })
        })?;
        Ok(chosen.into_iter().map(PyChosen).collect())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let name = quoted(py, &self.name)?;
        Ok(format!("Model({name}, device='{}', dtype='{}')", self.device(), self.precision))
    }
}

/// One question about many regions of a picture.
struct AboutEach {
    model: Arc<Gpt4Roi>,
    drafter: Drafter,
    picture: Picture,
    regions: Regions,
    question: String,
}

/// Takes the answer about each region, by its place.
type OnEach<'a, T> = &'a mut dyn FnMut(usize, gpt4roi::Result<T>) -> ControlFlow<()>;

impl AboutEach {
    fn read(
        model: &PyModel,
        image: &Bound<'_, PyAny>,
        boxes: Option<&Bound<'_, PyAny>>,
        keywords: &Keywords<'_>,
    ) -> PyResult<Self> {
        let (picture, regions) = (Picture::read(image)?, Regions::read(boxes, keywords)?);
        let question = keywords.take("question")?.unwrap_or_else(|| "What is <region1>?".into());
        Ok(Self { model: model.model.clone(), drafter: model.drafter.clone(), picture, regions, question })
    }

    /// All answers, in the order of the regions. Nothing more is computed once nobody waits.
    fn ask<T>(
        self,
        asker: &Asker,
        ask: impl FnOnce(&mut Chat<'_>, &[Shape], &str, OnEach<'_, T>) -> gpt4roi::Result<()>,
    ) -> Result<Vec<T>, Failure> {
        let image = self.picture.open()?;
        let shapes = self.regions.shapes(image.size())?;
        check_question(&self.question, image.size())?;
        let (mut answers, mut failure) = (Vec::new(), Ok(()));
        let mut on_answer = |place, answer| match answer {
            Ok(answer) if !asker.is_gone() => {
                answers.push((place, answer));
                ControlFlow::Continue(())
            }
            Ok(_) => ControlFlow::Break(()),
            Err(error) => {
                failure = Err(error);
                ControlFlow::Break(())
            }
        };
        let mut chat = Chat::new(&self.model, &image)?.drafting_by(&self.drafter);
        ask(&mut chat, &shapes, &self.question, &mut on_answer)?;
        failure?;
        answers.sort_by_key(|(place, _)| *place);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }
}

/// # Errors
/// If a question does not ask about the region.
fn check_question(question: &str, size: ImageSize) -> Result<(), Failure> {
    const THIS: RegionId = RegionId(1);
    let parts = mention::parse(question, &[THIS], size).map_err(gpt4roi::Error::from)?;
    let is_about_it = parts.contains(&Part::Mention(THIS));
    if is_about_it { Ok(()) } else { Err(Failure::AboutNothing(question.to_owned())) }
}
