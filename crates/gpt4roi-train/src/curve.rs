//! The loss over the steps as an SVG picture.

use std::path::Path;

use plotters::prelude::*;

use crate::{
    checkpoint::replace,
    error::{Result, TrainError},
    log::Record,
};

/// Points drawn at most; a longer log is averaged in stretches.
const POINTS: usize = 400;

/// Draws the loss of `records` under `title` to `path`.
pub fn draw(path: &Path, title: &str, records: &[Record]) -> Result<()> {
    let points = averaged(records);
    if points.len() < 2 {
        return Ok(());
    }
    let mut svg = String::new();
    render(&mut svg, title, &points)
        .map_err(|error| TrainError::Curve { path: path.into(), message: error.to_string() })?;
    replace(path, svg.as_bytes())
}

/// Means of equal stretches: (last step, loss).
fn averaged(records: &[Record]) -> Vec<(f64, f64)> {
    let finite: Vec<_> = records.iter().filter(|record| record.loss.is_finite()).collect();
    let stretch = finite.len().div_ceil(POINTS).max(1);
    let mean = |records: &[&Record]| {
        let last = records.last().map_or(0.0, |record| record.step as f64);
        (last, records.iter().map(|record| record.loss).sum::<f64>() / records.len() as f64)
    };
    finite.chunks(stretch).map(mean).collect()
}

fn render(svg: &mut String, title: &str, points: &[(f64, f64)]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (first, last) = (points[0].0, points[points.len() - 1].0);
    let top = points.iter().map(|point| point.1).fold(f64::MIN, f64::max);
    let area = SVGBackend::with_string(svg, (800, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(first..last.max(first + 1.0), 0.0..top * 1.05)?;
    chart.configure_mesh().x_desc("step").y_desc("loss").x_label_formatter(&|step| format!("{step:.0}")).draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), RGBColor(33, 102, 172).stroke_width(2)))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(count: u64) -> Vec<Record> {
        (1..=count).map(|step| Record { step, loss: 4.0 / step as f64, ..Record::default() }).collect()
    }

    #[test]
    fn long_logs_are_averaged_in_stretches() {
        let points = averaged(&records(801)); // stretches of 3
        assert_eq!(points.len(), 267);
        assert_eq!(points[0].0, 3.0);
        assert!((points[0].1 - (4.0 + 2.0 + 4.0 / 3.0) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_curve_is_an_svg_with_its_title_and_axes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loss.svg");
        draw(&path, "0-tower", &records(10)).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for part in ["<svg", "0-tower", "step", "loss", "<polyline"] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
    }

    #[test]
    fn one_point_is_no_curve() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("loss.svg");
        draw(&path, "", &records(1)).unwrap();
        assert!(!path.exists());
    }
}
