"""Mixed precision, a gradient scaler, clipping, and two batches a step."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
for batch in range(8):
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(8, 4)).square().mean() / 2
    scaler.scale(loss).backward()
    if batch % 2:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        schedule.step()
    if batch == 4:
        model.eval()
        print(model(torch.ones(1, 4)).item())
        model.train()
    print(batch, loss.item())
print([weight.tolist() for weight in model.state_dict().values()])
