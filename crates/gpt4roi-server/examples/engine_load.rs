//! What the engine does under load: served and refused, times, memory.
//!
//! First it is asked one question after the other, then as much at a time as it can decode together, which
//! gives its capacity. Then questions are offered at that rate and at ten times of it, whatever becomes of
//! them, about a few pictures in turn. At the end, running answers are cancelled.
//!
//! ```console
//! cargo run --release -p gpt4roi-server --example engine_load -- 20
//! ```
//!
//! The argument is how many seconds each of the parts takes.
#![expect(clippy::print_stdout, reason = "it is there to print")]

use std::{
    error::Error,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::Device;
use gpt4roi::{BBox, Gpt4Roi, Image, RegionId, chat::AskOptions, image::DEFAULT_MAX_PIXELS, shape::Shape};
use gpt4roi_server::engine::{Engine, EngineOptions, Question, Refused, Reply, Said, Update};
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::sleep_until,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Pictures that are asked about in turn.
const PICTURES: usize = 8;

#[tokio::main]
async fn main() -> Result<()> {
    let seconds = std::env::args().nth(1).map_or(Ok(10), |argument| argument.parse())?;
    let length = Duration::from_secs(seconds);
    let options = EngineOptions::default();
    let together = options.max_sequences;
    let (engine, thread) = Engine::start(Gpt4Roi::nano(&Device::Cpu)?, options);
    let images = pictures()?;
    while !engine.is_ready() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("{} threads; {PICTURES} pictures; {seconds} s each", std::thread::available_parallelism()?);
    println!("{:<12}{}", "", Row::HEADER);
    let alone = closed_loop(&engine, &images, 1, length).await?;
    println!("{:<12}{}", "one by one", alone.row());
    let full = closed_loop(&engine, &images, together, length).await?;
    println!("{:<12}{}", format!("{together} at a time"), full.row());
    let capacity = full.served.len() as f64 / full.took.as_secs_f64();
    for times in [1.0, 10.0] {
        let offered = offer(&engine, &images, times * capacity, length).await?;
        println!("{:<12}{}", format!("{times} × {capacity:.1}/s"), offered.row());
    }
    println!("cancel to free: {}", cancel(&engine, &images, together).await?);
    println!("{:#?}", engine.stats());
    engine.stop();
    thread.join()?;
    Ok(())
}

/// The example's picture, in several shades.
fn pictures() -> Result<Vec<Arc<Image>>> {
    let example = Image::open("docs/example.png", DEFAULT_MAX_PIXELS)?;
    let shade = |shade: usize| {
        let mut rgb = example.rgb().clone();
        rgb.iter_mut().for_each(|value| *value = value.saturating_sub(shade as u8));
        Arc::new(Image::from_rgb(rgb))
    };
    Ok((0..PICTURES).map(shade).collect())
}

fn question(images: &[Arc<Image>], number: usize) -> Result<Question> {
    let image = images[number % images.len()].clone();
    let bbox = BBox::from_pixels([8.0, 14.0, 54.0, 59.0], image.size())?;
    Ok(Question {
        image,
        regions: vec![(RegionId(1), Shape::Box(bbox))],
        rounds: Vec::new(),
        question: vec![Said::Text("Describe <region1> in detail.".to_owned())],
        choices: None,
        options: AskOptions { max_new_tokens: 64, ..AskOptions::default() },
        deadline: Instant::now() + Duration::from_secs(60),
    })
}

/// An answer's times, from when the question was offered.
struct Served {
    first_text: Duration,
    total: Duration,
}

/// What became of the questions of one part.
#[derive(Default)]
struct Outcome {
    served: Vec<Served>,
    refused: usize,
    failed: usize,
    /// What refusals said, the shortest and the longest.
    retry_after: Option<(Duration, Duration)>,
    took: Duration,
    /// MiB, over time.
    memory: Vec<f64>,
}

async fn follow(mut reply: Reply, began: Instant) -> Option<Served> {
    let mut first_text = None;
    while let Some(update) = reply.next().await {
        match update {
            Update::Text { .. } => _ = first_text.get_or_insert_with(|| began.elapsed()),
            Update::Answer { .. } => {
                return Some(Served { first_text: first_text?, total: began.elapsed() });
            }
            _ => {}
        }
    }
    None
}

/// So many clients, each of whom waits for its answer before it asks again.
async fn closed_loop(engine: &Engine, images: &[Arc<Image>], clients: usize, length: Duration) -> Result<Outcome> {
    let (began, mut outcome) = (Instant::now(), Outcome::default());
    let (sender, mut served) = unbounded_channel();
    for client in 0..clients {
        let (engine, images, sender) = (engine.clone(), images.to_vec(), sender.clone());
        tokio::spawn(async move {
            for number in (client..).step_by(clients).take_while(|_| began.elapsed() < length) {
                let asked = question(&images, number).ok().and_then(|question| engine.ask(question).ok());
                let served = match asked {
                    Some(reply) => follow(reply, Instant::now()).await,
                    None => None,
                };
                drop(sender.send(served));
            }
        });
    }
    drop(sender);
    while let Some(served) = served.recv().await {
        outcome.add(served);
    }
    outcome.took = began.elapsed();
    outcome.memory.push(resident()?);
    Ok(outcome)
}

/// Questions at even distances, whatever becomes of those before.
async fn offer(engine: &Engine, images: &[Arc<Image>], per_second: f64, length: Duration) -> Result<Outcome> {
    let (began, mut outcome) = (Instant::now(), Outcome::default());
    let (sender, mut served) = unbounded_channel();
    let mut next_sample = began;
    for number in 0.. {
        let at = began + Duration::from_secs_f64(number as f64 / per_second);
        if at - began > length {
            break;
        }
        sleep_until(at.into()).await;
        match engine.ask(question(images, number)?) {
            Ok(reply) => spawn_follow(reply, sender.clone()),
            Err(Refused::Full { retry_after }) => outcome.refuse(retry_after),
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= next_sample {
            outcome.memory.push(resident()?);
            next_sample += length / 4;
        }
    }
    drop(sender);
    while let Some(served) = served.recv().await {
        outcome.add(served);
    }
    outcome.took = began.elapsed();
    outcome.memory.push(resident()?);
    Ok(outcome)
}

fn spawn_follow(reply: Reply, served: UnboundedSender<Option<Served>>) {
    let began = Instant::now();
    tokio::spawn(async move { drop(served.send(follow(reply, began).await)) });
}

/// All seats are taken, then everybody goes away at once: how long until no sequence is left. Median and
/// longest of several.
async fn cancel(engine: &Engine, images: &[Arc<Image>], together: usize) -> Result<String> {
    const TIMES: usize = 11;
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let replies: Vec<_> =
            (0..together).map(|number| Ok(engine.ask(question(images, number)?)?)).collect::<Result<_>>()?;
        while engine.stats().sequences == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let began = Instant::now();
        drop(replies);
        while engine.stats().running > 0 {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        times.push(began.elapsed());
    }
    times.sort();
    Ok(format!("median {:.1?}, longest {:.1?} of {TIMES}", times[TIMES / 2], times[TIMES - 1]))
}

impl Outcome {
    fn add(&mut self, served: Option<Served>) {
        match served {
            Some(served) => self.served.push(served),
            None => self.failed += 1,
        }
    }

    fn refuse(&mut self, after: Duration) {
        self.refused += 1;
        let (least, most) = self.retry_after.unwrap_or((after, after));
        self.retry_after = Some((least.min(after), most.max(after)));
    }

    fn row(&self) -> Row {
        let times = |of: fn(&Served) -> Duration| {
            let mut all: Vec<_> = self.served.iter().map(of).collect();
            all.sort();
            let at = |share: f64| all.get(((all.len() as f64 * share) as usize).min(all.len().saturating_sub(1)));
            [0.5, 0.99].map(|share| at(share).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3))
        };
        Row {
            served: self.served.len(),
            refused: self.refused,
            failed: self.failed,
            per_second: self.served.len() as f64 / self.took.as_secs_f64(),
            first_text: times(|served| served.first_text),
            total: times(|served| served.total),
            retry_after: self.retry_after,
            memory: self.memory.clone(),
        }
    }
}

struct Row {
    served: usize,
    refused: usize,
    failed: usize,
    per_second: f64,
    first_text: [f64; 2],
    total: [f64; 2],
    retry_after: Option<(Duration, Duration)>,
    memory: Vec<f64>,
}

impl Row {
    const HEADER: &'static str =
        "served refused failed    /s   first text p50/p99 ms   total p50/p99 ms   retry after s   memory MiB";
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { served, refused, failed, per_second, first_text: [a, b], total: [c, d], .. } = self;
        write!(f, "{served:>6} {refused:>7} {failed:>6} {per_second:>5.1}   {a:>10.0} / {b:<9.0} {c:>8.0} / {d:<7.0}")?;
        match self.retry_after {
            Some((least, most)) => write!(f, "   {:>5.1} – {:<5.1}", least.as_secs_f64(), most.as_secs_f64())?,
            None => write!(f, "   {:>13}", "–")?,
        }
        self.memory.iter().try_for_each(|memory| write!(f, " {memory:.0}"))
    }
}

/// Resident memory in MiB, as Linux counts it; nothing elsewhere.
fn resident() -> Result<f64> {
    const PAGE: f64 = 4096.0;
    let Ok(statm) = fs::read_to_string("/proc/self/statm") else { return Ok(f64::NAN) };
    let pages: f64 = statm.split(' ').nth(1).unwrap_or("0").parse()?;
    Ok(pages * PAGE / f64::from(1 << 20))
}
