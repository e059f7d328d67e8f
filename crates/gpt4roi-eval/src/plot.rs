//! Curves as one SVG picture.

use std::path::{Path, PathBuf};

use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, Circle, DrawingArea, IntoDrawingArea, IntoFont, LineSeries, PathElement, RGBColor, SVGBackend,
        Text, WHITE,
    },
    style::Color,
};

use crate::metrics::Accuracy;

/// Pixels of one panel, across and down.
const PANEL: (u32, u32) = (520, 360);

/// Told apart by lightness as well, for those who see few colours and for print.
const COLORS: [RGBColor; 4] =
    [RGBColor(33, 102, 172), RGBColor(214, 96, 77), RGBColor(26, 26, 26), RGBColor(127, 188, 65)];

/// A picture that can't be drawn or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlotError {
    /// The file can't be written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The picture can't be drawn.
    #[error("expected curves that can be drawn: {0}")]
    Drawing(String),
}

/// Curves over the same axis. The vertical axis is a share, 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// What the horizontal axis counts.
    pub x: String,
    /// What the vertical axis counts.
    pub y: String,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// Shares over something, with their 95 % intervals as bars.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// In the legend.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, Accuracy)>,
}

/// Draws panels side by side, two in a row, to an SVG file.
///
/// # Errors
/// If the file can't be written.
pub fn draw(path: &Path, panels: &[Panel]) -> Result<(), PlotError> {
    std::fs::write(path, svg(panels)?).map_err(|source| PlotError::File { path: path.into(), source })
}

fn svg(panels: &[Panel]) -> Result<String, PlotError> {
    let (across, down) = (panels.len().clamp(1, 2), panels.len().div_ceil(2).max(1));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (across as u32 * PANEL.0, down as u32 * PANEL.1));
        let area = area.into_drawing_area();
        let drawn = area.fill(&WHITE).map_err(|error| error.to_string());
        let parts = area.split_evenly((down, across));
        drawn
            .and_then(|()| parts.iter().zip(panels).try_for_each(|(part, panel)| panel.draw(part)))
            .and_then(|()| area.present().map_err(|error| error.to_string()))
            .map_err(PlotError::Drawing)?;
    }
    Ok(svg)
}

impl Panel {
    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), String> {
        self.try_draw(area).map_err(|error| error.to_string())
    }

    fn try_draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn std::error::Error>> {
        let xs = || self.curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.0));
        let (first, last) = (xs().fold(f64::INFINITY, f64::min), xs().fold(f64::NEG_INFINITY, f64::max));
        let range = if first < last { first..last } else { 0.0..1.0 };
        let (start, width) = (range.start, range.end - range.start);
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(14)
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d(range, 0.0..1.0)?;
        chart.configure_mesh().x_desc(&self.x).y_desc(&self.y).draw()?;
        for (index, (curve, color)) in self.curves.iter().zip(COLORS.iter().cycle()).enumerate() {
            let points = || curve.points.iter().map(|(x, share)| (*x, share.accuracy));
            chart.draw_series(LineSeries::new(points(), color.stroke_width(2)))?;
            chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
            let bar = |(x, Accuracy { ci95: [low, high], .. }): &(f64, Accuracy)| {
                PathElement::new([(*x, *low), (*x, *high)], color.stroke_width(1))
            };
            chart.draw_series(curve.points.iter().map(bar))?;
            let place = (start + 0.05 * width, 0.06 + 0.07 * index as f64);
            let label = Text::new(curve.name.clone(), place, ("sans-serif", 14).into_font().color(color));
            chart.draw_series([label])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Tally;

    #[test]
    fn a_picture_has_every_panel_with_its_axes_and_curves() {
        let curve = |name: &str| Curve {
            name: name.into(),
            points: (1..=4).map(|x| (f64::from(x), Tally::of(x as usize, 5).accuracy())).collect(),
        };
        let panel = |title: &str, curves| Panel { title: title.into(), x: "regions".into(), y: "right".into(), curves };
        let panels = [panel("first", vec![curve("each"), curve("all")]), panel("second", vec![curve("one")])];
        let svg = svg(&panels).unwrap();
        for part in ["<svg", "first", "second", "regions", "right", "each", "all", "one"] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 12);
    }

    #[test]
    fn nothing_measured_is_an_empty_panel() {
        let nothing = Panel { title: "empty".into(), x: "x".into(), y: "y".into(), curves: vec![] };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("curves.svg");
        draw(&path, &[nothing]).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("empty"));
        let error = draw(&directory.path().join("missing/curves.svg"), &[]).unwrap_err().to_string();
        assert!(error.contains("curves.svg"), "{error}");
    }
}
