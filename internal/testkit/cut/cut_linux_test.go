package cut_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"headwater.example/internal/testkit/cut"
)

// hungry is the variable by which this program knows that it is to take memory until its input ends, and late the one by which it knows
// that it is to delay packets.
const hungry, late = "TAKES_MEMORY", "DELAYS_PACKETS"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(late) != "":
		os.Exit(inNamespace(delays))
	case os.Getenv(hungry) == "":
		os.Exit(m.Run())
	}
	_, _ = os.Stdin.Read(make([]byte, 1)) // until it is in its group
	taken := make([]byte, 64<<20)
	for i := 0; i < len(taken); i += 4096 {
		taken[i] = 1
	}
}

// TestAStarvedProcessIsKilled: one that takes more memory than it may have is killed, and nothing is left of its group.
func TestAStarvedProcessIsKilled(t *testing.T) {
	if err := cut.Starves(); err != nil {
		t.Skipf("processes can't be starved here: %v", err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), hungry+"=1")
	pipe, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release, starved := cut.Starve(cmd.Process.Pid, 1<<20)
	closed := pipe.Close() // it goes on
	var ended *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", err)
	}
	if err := errors.Join(starved, closed); err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
}

// notHere is the exit code of a program that can't do here what it is to do.
const notHere = 3

// inNamespace does something in a namespace of its own, and returns the exit code.
func inNamespace(do func(*cut.Network) error) int {
	if !cut.Inside() {
		code, err := cut.Again(context.Background())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return notHere
		}
		return code
	}
	n, err := cut.Open()
	if err == nil {
		err = n.Delays()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return notHere
	}
	if err := do(n); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestDelayedPacketsArrive: what goes over connections is held for its time and comes whole, also over those that were there before; datagrams
// overtake each other; and afterwards all is as before.
func TestDelayedPacketsArrive(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), late+"=1")
	out, err := cmd.CombinedOutput()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() == notHere {
		t.Skipf("packets can't be delayed here: %s", out)
	}
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// delays sends over a network that delays.
func delays(n *cut.Network) (err error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer lis.Close()
	echoed := make(chan error, 1)
	go func() {
		conn, err := lis.Accept()
		if err == nil {
			_, err = io.Copy(conn, conn)
			err = errors.Join(err, conn.Close())
		}
		echoed <- err
	}()
	conn, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		return err
	}
	in, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := net.Dial("udp", in.LocalAddr().String())
	if err != nil {
		return err
	}
	defer out.Close()
	if err := echo(conn, 1, 0); err != nil {
		return fmt.Errorf("before: %w", err)
	}
	lag := cut.Lag{Least: 20 * time.Millisecond, More: 20 * time.Millisecond, Twice: 20}
	end, err := n.Delay(lag, rand.New(rand.NewPCG(1, 2)), lis.Addr().String(), in.LocalAddr().String())
	if err != nil {
		return err
	}
	for _, size := range []int{1, 4 << 20} {
		if err := echo(conn, size, 2*lag.Least); err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	if err := overtake(in, out); err != nil {
		return err
	}
	if err := end(); err != nil {
		return err
	}
	if err := echo(conn, 1<<20, 0); err != nil {
		return fmt.Errorf("afterwards: %w", err)
	}
	return errors.Join(conn.Close(), <-echoed, n.Delays())
}

// echo sends bytes, and compares what comes back, and not before a time.
func echo(conn net.Conn, size int, least time.Duration) error {
	sent, got := bytes.Repeat([]byte("headwater"), size/9+1)[:size], make([]byte, size)
	began := time.Now()
	sending := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		sending <- err
	}()
	_, err := io.ReadFull(conn, got)
	if err := errors.Join(err, <-sending); err != nil {
		return err
	}
	if took := time.Since(began); took < least {
		return fmt.Errorf("it came after %v, and not after %v", took, least)
	}
	if !bytes.Equal(sent, got) {
		return errors.New("other bytes came back")
	}
	return nil
}

// overtake sends datagrams, of which all have to come, in another order.
func overtake(in net.PacketConn, out net.Conn) error {
	const datagrams = 100
	for i := range datagrams {
		if _, err := out.Write([]byte{byte(i)}); err != nil {
			return err
		}
	}
	var came []byte
	for one := make([]byte, 1); len(slices.Compact(slices.Sorted(slices.Values(came)))) < datagrams; came = append(came, one...) {
		if _, _, err := in.ReadFrom(one); err != nil {
			return err
		}
	}
	if slices.IsSorted(came) {
		return fmt.Errorf("the datagrams came in their order: %v", came)
	}
	return nil
}
