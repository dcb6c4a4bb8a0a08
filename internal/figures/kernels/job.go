package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"headwater.example/client"
	"headwater.example/internal/figures/jobs"
	"headwater.example/internal/localcluster"
)

// jobWorkers are the workers of the cluster that the job runs on.
const jobWorkers = 2

// jobReport is what is kept of the figure job_32k: the wall time of a job, from its submission to the result on disk / the
// time that its parts take by themselves, one after the other.
type jobReport struct {
	Taken     time.Time   `json:"taken"`
	Positions int         `json:"positions"`
	Queries   int         `json:"queries"`
	JobBytes  int64       `json:"job_bytes"`
	Value     float64     `json:"value"`
	Samples   []jobSample `json:"samples"`
}

// jobSample is one round, in seconds: the job, the kernels of the worker that took longest, the job's bytes over its hops
// through bare streams, and the result onto the disk.
type jobSample struct {
	Wall   float64 `json:"wall_seconds"`
	Kernel float64 `json:"kernel_seconds"`
	Move   float64 `json:"move_seconds"`
	Sync   float64 `json:"fsync_seconds"`
	Ratio  float64 `json:"ratio"`
}

func (c *command) measureJob(ctx context.Context, out, log io.Writer) (err error) {
	r := jobReport{Taken: time.Now(), Positions: 32768, Queries: 64}
	if c.quick {
		r.Positions, r.Queries = 130, 2
	}
	dir, err := os.MkdirTemp("", "headwater-figures-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "job.safetensors")
	if r.JobBytes, err = jobs.Write(path, jobs.Attention(r.Queries, r.Positions, heads, groups, headDim), nil, jobs.Uniform(rand.New(rand.NewPCG(9, 10)))); err != nil {
		return fmt.Errorf("write the job: %w", err)
	}
	coord, err := filepath.Abs(filepath.Join(c.bin, "coord"))
	if err != nil {
		return err
	}
	// With one thread, a worker's times of computing do not overlap, and their sum is what it spent on that.
	cluster, err := localcluster.Start(ctx, localcluster.Options{Workers: jobWorkers, Threads: 1, Command: []string{coord}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Stop(context.WithoutCancel(ctx))) }()
	to, err := client.Dial(cluster.Address())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	// One peer for each process that receives bytes.
	var peers []*barePeer
	defer func() {
		for _, p := range peers {
			err = errors.Join(err, p.stop())
		}
	}()
	for range jobWorkers {
		p, err := startBare(ctx, log)
		if err != nil {
			return fmt.Errorf("start a bare server: %w", err)
		}
		peers = append(peers, p)
	}
	var ratios []float64
	for range c.defaultRounds(5) {
		s, err := r.round(ctx, to, peers, path, dir)
		if err != nil {
			return err
		}
		s.Ratio = s.Wall / (s.Kernel + s.Move + s.Sync)
		r.Samples, ratios = append(r.Samples, s), append(ratios, s.Ratio)
	}
	r.Value = median(ratios)
	fmt.Fprintf(out, "figure job_32k %.4f\n", r.Value)
	return save(c.samples, r)
}

// round runs the job once, and then its parts.
func (r *jobReport) round(ctx context.Context, to *client.Client, peers []*barePeer, path, dir string) (s jobSample, err error) {
	result := filepath.Join(dir, "result.safetensors")
	began := time.Now()
	job, err := to.Submit(ctx, client.SubmitOptions{Path: path})
	if err == nil {
		job, err = to.Wait(ctx, job.ID, nil)
	}
	if err == nil {
		job, err = to.Download(ctx, job.ID, result, nil)
	}
	if err != nil {
		return s, err
	}
	s.Wall = time.Since(began).Seconds()

	// The hops: the file to the coordinator, from there to the workers at once and back, the result to the client.
	began = time.Now()
	if err := peers[0].move(ctx, r.JobBytes, 0); err != nil {
		return s, err
	}
	hop, hopContext := errgroup.WithContext(ctx)
	for i, w := range job.Report.Workers {
		s.Kernel = max(s.Kernel, w.Compute.Seconds())
		hop.Go(func() error {
			return peers[i%len(peers)].move(hopContext, int64(w.BytesOut), int64(w.BytesInWire))
		})
	}
	if err := hop.Wait(); err != nil {
		return s, err
	}
	if err := peers[0].move(ctx, 0, int64(job.ResultBytes)); err != nil {
		return s, err
	}
	s.Move = time.Since(began).Seconds()

	began = time.Now()
	if err := writeSynced(filepath.Join(dir, "synced"), int64(job.ResultBytes)); err != nil {
		return s, err
	}
	s.Sync = time.Since(began).Seconds()
	return s, os.Remove(result)
}

// writeSynced writes size bytes into a file that is on the disk when it returns.
func writeSynced(path string, size int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(make([]byte, size)); err != nil {
		return err
	}
	return f.Sync()
}

// bareChunk is the bytes of one message of a bare stream.
const bareChunk = 256 << 10

// bareMethod is a stream both ways that has nothing but bytes: first a message of the bytes that are wanted back, as 8
// bytes, little endian; then those that are sent.
const bareMethod = "/bare/Move"

var bareStream = grpc.StreamDesc{StreamName: "Move", ServerStreams: true, ClientStreams: true, Handler: takeBare}

// takeBare is the server's end of a stream.
func takeBare(_ any, stream grpc.ServerStream) error {
	var m wrapperspb.BytesValue
	if err := stream.RecvMsg(&m); err != nil {
		return err
	}
	if len(m.Value) != 8 {
		return fmt.Errorf("%d bytes to say how many are wanted", len(m.Value))
	}
	wanted := int64(binary.LittleEndian.Uint64(m.Value))
	for {
		switch err := stream.RecvMsg(&m); err {
		case nil:
		case io.EOF:
			return sendBare(stream, wanted)
		default:
			return err
		}
	}
}

// sendBare sends n bytes to either end of a stream.
func sendBare(stream interface{ SendMsg(any) error }, n int64) error {
	chunk := make([]byte, bareChunk)
	for n > 0 {
		k := min(n, bareChunk)
		if err := stream.SendMsg(&wrapperspb.BytesValue{Value: chunk[:k]}); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// serveBare serves bare streams on a port of the loopback interface, which it writes to out, until in ends.
func serveBare(in io.Reader, out io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "bare", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{bareStream}}, struct{}{})
	var serving errgroup.Group
	serving.Go(func() error { return s.Serve(listener) })
	if _, err = fmt.Fprintln(out, listener.Addr()); err == nil {
		_, err = io.Copy(io.Discard, in)
	}
	s.Stop()
	return errors.Join(err, serving.Wait())
}

// barePeer is a process that serves bare streams, and a connection to it.
type barePeer struct {
	process *exec.Cmd
	stdin   io.Closer
	conn    *grpc.ClientConn
}

func startBare(ctx context.Context, log io.Writer) (*barePeer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	process := exec.CommandContext(ctx, self, "-bare-server")
	process.Env = append(os.Environ(), asChild+"=1")
	process.Stderr = log
	stdin, err := process.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, err
	}
	p := &barePeer{process: process, stdin: stdin}
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err == nil {
		p.conn, err = grpc.NewClient("passthrough:///"+strings.TrimSpace(address), grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

// move sends the process some bytes and then receives some.
func (p *barePeer) move(ctx context.Context, there, back int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := p.conn.NewStream(ctx, &bareStream, bareMethod)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&wrapperspb.BytesValue{Value: binary.LittleEndian.AppendUint64(nil, uint64(back))}); err != nil {
		return err
	}
	if err := sendBare(stream, there); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	received := int64(0)
	for {
		var m wrapperspb.BytesValue
		switch err := stream.RecvMsg(&m); err {
		case nil:
			received += int64(len(m.Value))
		case io.EOF:
			if received != back {
				return fmt.Errorf("%d bytes came back through a bare stream, not %d", received, back)
			}
			return nil
		default:
			return err
		}
	}
}

// stop ends the process and waits for it.
func (p *barePeer) stop() error {
	var err error
	if p.conn != nil {
		err = p.conn.Close()
	}
	return errors.Join(err, p.stdin.Close(), p.process.Wait())
}
