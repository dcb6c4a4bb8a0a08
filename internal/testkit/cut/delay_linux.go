package cut

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// device is the name of the interface by which packets that are delayed come to this program.
	device = "delayed"
	// delayedMark is the mark of such packets, and delayedTable the number of the table that has their way.
	delayedMark, delayedTable = "1", "100"
	// maxPacket is the size of a packet at most.
	maxPacket = 65535
)

// Delays says why packets can't be delayed here; nil if they can.
func (n *Network) Delays() error {
	end, err := n.Delay(Lag{}, rand.New(rand.NewPCG(1, 1)), "127.0.0.1:1")
	if err != nil {
		return err
	}
	return end()
}

// Delay holds each packet to or from the ports of some addresses, 127.0.0.1:port, for a while from now on, until end is called. It is random
// that draws for how long. They go by this program: the kernel hands them to it over an interface of its own (tun), and takes them back.
func (n *Network) Delay(lag Lag, random *rand.Rand, addresses ...string) (end func() error, err error) {
	ports, err := portsOf(addresses)
	if err != nil {
		return nil, err
	}
	tun, err := openTun()
	if err != nil {
		return nil, fmt.Errorf("open an interface: %w", err)
	}
	w := &wire{tun: tun, line: newLine(lag, random)}
	defer func() {
		if err != nil {
			err = errors.Join(err, tun.Close())
		}
	}()
	for _, set := range []struct{ of, name, value string }{
		{device, "route_localnet", "1"}, {device, "accept_local", "1"}, {device, "rp_filter", "0"}, {"all", "rp_filter", "0"},
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net/ipv4/conf", set.of, set.name), []byte(set.value), 0); err != nil {
			return nil, err
		}
	}
	if err := n.lead(); err != nil {
		return nil, err
	}
	var rules strings.Builder
	for _, protocol := range []string{"tcp", "udp"} {
		for _, port := range []string{"dport", "sport"} {
			fmt.Fprintf(&rules, "add rule ip delay way %s %s { %s } meta mark set %s\n", protocol, port, ports, delayedMark)
		}
	}
	w.start()
	if err := run(rules.String(), "nft", "-f", "-"); err != nil {
		return nil, errors.Join(err, w.stop())
	}
	return func() error {
		return errors.Join(run("", "nft", "flush", "chain", "ip", "delay", "way"), w.stop(), tun.Close())
	}, nil
}

// lead leads marked packets to the interface, before they are taken for this machine's own.
func (n *Network) lead() error {
	if !n.leads {
		for _, args := range [][]string{
			{"-4", "rule", "add", "pref", "1", "fwmark", delayedMark, "lookup", delayedTable},
			{"-4", "rule", "add", "pref", "2", "lookup", "local"},
			{"-4", "rule", "del", "pref", "0"},
		} {
			if err := run("", "ip", args...); err != nil {
				return err
			}
		}
		if err := run("add table ip delay\nadd chain ip delay way { type route hook output priority mangle; policy accept; }\n", "nft", "-f", "-"); err != nil {
			return err
		}
		n.leads = true
	}
	return errors.Join(
		run("", "ip", "link", "set", "dev", device, "mtu", fmt.Sprint(maxPacket), "up"),
		run("", "ip", "-4", "route", "replace", "127.0.0.0/8", "dev", device, "table", delayedTable),
	)
}

// openTun makes the interface, which is there until the file is closed.
func openTun() (*os.File, error) {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	request, err := unix.NewIfreq(device)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), path), nil
}

// wire takes packets from an interface, and gives them back when they are due.
type wire struct {
	tun     *os.File
	line    *line
	packets chan []byte
	tasks   sync.WaitGroup
	errs    [2]error // of what takes and of what gives
}

func (w *wire) start() {
	w.packets = make(chan []byte)
	w.tasks.Go(func() { w.errs[0] = w.take() })
	w.tasks.Go(func() { w.errs[1] = w.give() })
}

// stop gives all back that is held, and waits.
func (w *wire) stop() error {
	err := w.tun.SetReadDeadline(time.Unix(0, 1))
	if err != nil { // else the reader would not end
		err = errors.Join(err, w.tun.Close())
	}
	w.tasks.Wait()
	return errors.Join(append(w.errs[:], err)...)
}

func (w *wire) take() error {
	defer close(w.packets)
	b := make([]byte, maxPacket)
	for {
		n, err := w.tun.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		w.packets <- append([]byte(nil), b[:n]...)
	}
}

func (w *wire) give() error {
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		select {
		case p, ok := <-w.packets:
			if !ok {
				return w.write(w.line.rest())
			}
			w.line.take(p, time.Now())
		case <-due.C:
		}
		if err := w.write(w.line.due(time.Now())); err != nil {
			for range w.packets { // who takes must not wait
			}
			return err
		}
		if next, ok := w.line.next(); ok {
			due.Reset(time.Until(next))
		}
	}
}

func (w *wire) write(packets [][]byte) error {
	for _, p := range packets {
		if n, err := w.tun.Write(p); err != nil {
			return err
		} else if n < len(p) {
			return io.ErrShortWrite
		}
	}
	return nil
}
