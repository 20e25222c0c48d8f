package demo

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
)

// Picture paints a banner and returns it as a PNG of at least size bytes, and at most two per cent and 500 bytes more where
// size is above 8,000. The grain that makes it as heavy as a photograph is the same at every start.
func Picture(size int) ([]byte, error) {
	const bytesPerPixel = 1.5 // what a grainy pixel weighs at least
	width := max(480, int(math.Sqrt(4*float64(size)/bytesPerPixel)))
	b := banner{image.NewRGBA(image.Rect(0, 0, width, width/4))}
	all := width * (width / 4)
	b.paint(0)
	smooth, err := b.encode()
	if err != nil || len(smooth) >= size {
		return smooth, err
	}
	// The weight grows with the grainy pixels, nearly linearly: a few steps of interpolation find the lightest that is heavy
	// enough.
	low, high := 0, all
	lowSize, slope := len(smooth), 2.0
	var best []byte
	for range 12 {
		grain := low + int(float64(size+size/200-lowSize)/slope)
		if grain <= low || grain >= high {
			grain = (low + high + 1) / 2
		}
		b.paint(grain)
		painted, err := b.encode()
		if err != nil {
			return nil, err
		}
		slope = max(0.5, float64(len(painted)-len(smooth))/float64(grain))
		if len(painted) < size {
			low, lowSize = grain, len(painted)
			continue
		}
		high, best = grain, painted
		if len(painted) <= size+size/100 {
			break
		}
	}
	if best == nil {
		return nil, fmt.Errorf("a picture of %d pixels cannot weigh %d bytes", all, size)
	}
	return best, nil
}

type banner struct{ img *image.RGBA }

// paint draws a sky with three suns and puts grain on the first pixels.
func (b banner) paint(grain int) {
	box := b.img.Bounds()
	w, h := box.Dx(), box.Dy()
	for y := range h {
		for x := range w {
			c := color.RGBA{uint8(40 + 170*x/w), uint8(60 + 60*y/h), uint8(140 - 70*x/w), 255} //nolint:gosec // within 0 to 255
			for i, sun := range []color.RGBA{{255, 214, 102, 255}, {255, 159, 67, 255}, {238, 82, 83, 255}} {
				dx, dy, r := x-w*(i+1)/4, y-h/2, h/3
				if dx*dx+dy*dy < r*r {
					c = sun
				}
			}
			if i := y*w + x; i < grain {
				m := mix(uint64(i)) //nolint:gosec // i counts from 0
				c.R, c.G, c.B = shade(c.R, m), shade(c.G, m>>8), shade(c.B, m>>16)
			}
			b.img.SetRGBA(x, y, c)
		}
	}
}

// shade moves a colour by -32 to +31.
func shade(c uint8, m uint64) uint8 {
	return uint8(min(255, max(0, int(c)+int(m&63)-32))) //nolint:gosec // clamped
}

func (b banner) encode() ([]byte, error) {
	var out bytes.Buffer
	if err := png.Encode(&out, b.img); err != nil {
		return nil, fmt.Errorf("encode picture: %w", err)
	}
	return out.Bytes(), nil
}
